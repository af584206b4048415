# What mounted trees cost in memory, to be sourced by scripts/bench.
#
#   measure_memory    a million inodes, all of them looked at; then 200 images, each mounted and read in. Needs $peel, $images,
#                     $work, $store, peel_mount, peel_unmount, timed, sample, list_all, line
#   print_memory      the lines of the table
#
# Private is what nobody else has: `.dirty` is what only the process itself can give back; `.private` also has the pages of files that
# nobody else has mapped: tables, which the kernel drops when it needs the room.

many=200

# With a million inodes: when it has just read the layer and made its table, and when the image was known.
measure_million() {
  local image=$work/million
  say "bench: a million files"
  umoci init --layout "$image"
  umoci new --image "$image:gzip"
  umoci raw add-layer --image "$image:gzip" <(scripts/million-files)
  fresh_store
  timed million.mount peel_mount "oci:$image:gzip"
  timed million.find list_all "$work/tree"
  sample_memory million.first
  peel_unmount
  timed million.again peel_mount "oci:$image:gzip"
  list_all "$work/tree" >/dev/null
  sample_memory million.known
  peel_unmount
  fresh_store
  rm -rf "$image"
}

# Each with the layers of the python image and a config of its own: so each has tables of thousands of files, and a process.
make_many() {
  local number manifest config digest entries=$work/many.entries
  skopeo copy --quiet --preserve-digests "oci:$images/python:estargz" "oci:$work/many:estargz"
  manifest=$(skopeo inspect --raw "oci:$work/many:estargz")
  config=$(skopeo inspect --raw --config "oci:$work/many:estargz")
  # put TEXT: it is a blob of the layout, and $digest its digest.
  put() {
    digest=$(printf '%s' "$1" | sha256sum | cut --delimiter ' ' --fields 1)
    printf '%s' "$1" >"$work/many/blobs/sha256/$digest"
  }
  for ((number = 1; number <= many; number++)); do
    put "$(jq --compact-output --arg number "$number" '.config.Labels.number = $number' <<<"$config")"
    put "$(jq --compact-output --arg digest "sha256:$digest" --argjson size "$(stat --format %s "$work/many/blobs/sha256/$digest")" \
      '.config.digest = $digest | .config.size = $size' <<<"$manifest")"
    printf '{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%d,"annotations":{"org.opencontainers.image.ref.name":"number-%d"}}\n' \
      "$digest" "$(stat --format %s "$work/many/blobs/sha256/$digest")" "$number"
  done >"$entries"
  jq --slurp '{schemaVersion: 2, manifests: .}' "$entries" >"$work/many/index.json"
}

measure_many() {
  local number
  say "bench: $many images"
  make_many
  fresh_store
  at_exit give_back_many
  for ((number = 1; number <= many; number++)); do
    mkdir -p "$work/mounted/$number"
    "$peel" mount --quiet --store "$store" "oci:$work/many:number-$number" "$work/mounted/$number"
    ls -lR "$work/mounted/$number/usr/bin" >/dev/null
    cat "$work/mounted/$number/usr/bin/"python3* >/dev/null
  done
  sample_memory many
  give_back_many
  fresh_store
  rm -rf "$work/many"
}
give_back_many() {
  local mount_point
  mounts_below "$work/mounted" | while IFS= read -r mount_point; do "$peel" unmount --store "$store" "$mount_point"; done
}

# sample_memory NAME: in megabytes, of all processes that hold and serve trees of the store, when they have given back what they decoded with.
sample_memory() {
  local pid
  # Nobody tells when: they do it when nothing was decoded for a second.
  sleep 2
  for pid in $("$peel" status --store "$store" --json | jq '.[].pid'); do
    # Who holds a tree has started who serves it, or nobody.
    for pid in "$pid" $(cat "/proc/$pid/task/$pid/children"); do cat "/proc/$pid/smaps_rollup"; done
  done >"$work/rollups"
  sample "$1.processes" "$(grep --count rollup "$work/rollups")"
  sample "$1.dirty" "$(awk '/^Private_Dirty:/ { sum += $2 } END { print sum * 1024 / 1e6 }' "$work/rollups")"
  sample "$1.private" "$(awk '/^Private_(Clean|Dirty):/ { sum += $2 } END { print sum * 1024 / 1e6 }' "$work/rollups")"
}

measure_memory() {
  measure_million
  measure_many
}

print_memory() {
  line 'mount gzip of 1,000,000 files' million.mount '' '' ms ''
  line 'find -printf over 1,000,000 files, first time' million.find '' '' ms ''
  line 'mount it again' million.again '' '' ms ''
  line 'private memory of who made the table' million.first.dirty '' '' MB '100 MB'
  line 'the same with its mapped tables (page cache)' million.first.private '' '' MB '100 MB'
  line 'private memory when the image was known' million.known.dirty '' '' MB '100 MB'
  line 'the same with its mapped tables (page cache)' million.known.private '' '' MB '100 MB'
  line "private memory of $many images, mounted and read in" many.dirty '' "$(median many.processes) processes" MB '1000 MB'
  line 'the same with their mapped tables (page cache)' many.private '' '' MB '1000 MB'
}
