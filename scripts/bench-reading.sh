# What it costs to read what is here, and to bring it, to be sourced by scripts/bench.
#
#   measure_reading   reads a large file of a mounted image, of which all is here, and a copy of it on the store's disk, in turn: from its beginning
#                     to its end and at random places, warm, and whole with caches dropped. Then all files of the python image from the
#                     registry into an empty store: the processor time that peel takes for it, beside that for decoding and
#                     hashing the same layers. Needs $peel, $yardstick, $images, $work, $store, peel_mount, peel_unmount, sample,
#                     read_all, drop_caches, line, and a registry with the python image
#   print_reading     the lines of the table

large_bytes=$((128 << 20))
random_reads=200000

# A file of that size, of what files of images have, and an image of it.
make_large_file() {
  local image=$work/large
  fresh_store
  peel_mount "$registry/python:estargz"
  # Who reads has enough at some point.
  { read_all "$work/tree" 2>/dev/null || true; } | head --bytes "$large_bytes" >"$work/large.file"
  peel_unmount
  umoci init --layout "$image"
  umoci new --image "$image:gzip"
  umoci raw add-layer --image "$image:gzip" <(tar --create --directory "$work" large.file)
  "$peel" convert --quiet "oci:$image:gzip" "$registry/large:estargz" --format estargz >/dev/null
  rm -rf "$image"
}

# read_large: peel's and the disk's in turn; the first that finds a file warm may pay for what the other left to do.
read_large() {
  local file turn
  local -A files=([peel]=$work/tree/large.file [disk]=$work/large.file)
  for file in peel disk; do
    drop_caches
    sample "large.$file.dropped" "$("$yardstick" sequential "${files[$file]}")"
  done
  for ((turn = 1; turn <= 5; turn++)); do
    for file in peel disk; do
      cat "${files[$file]}" >/dev/null
      sample "large.$file.sequential" "$("$yardstick" sequential "${files[$file]}")"
      sample "large.$file.random" "$("$yardstick" random "${files[$file]}" "$random_reads")"
    done
  done
}

# processor_of FILE: the seconds that `time` has written to it, in user and kernel.
processor_of() { awk 'END { print $1 + $2 }' "$1"; }

measure_processor() {
  local TIMEFORMAT='%U %S' pid layers
  fresh_store
  { time "$peel" mount --quiet --foreground --store "$store" "$registry/python:estargz" "$work/tree" 2>>"$work/mount.log"; } 2>"$work/processor" &
  pid=$!
  wait_until "peel mount" "$pid" "$work/mount.log" mountpoint --quiet "$work/tree"
  sample processor.bytes "$(read_all "$work/tree" | wc --bytes)"
  peel_unmount
  wait "$pid"
  sample processor.peel "$(processor_of "$work/processor")"
  mapfile -t layers < <(skopeo inspect --raw "oci:$images/python:estargz" | jq --raw-output --arg blobs "$images/python/blobs/" \
    '.layers[] | $blobs + (.digest | sub(":"; "/"))')
  { time "$yardstick" inflate "${layers[@]}" >/dev/null; } 2>"$work/processor"
  sample processor.libraries "$(processor_of "$work/processor")"
  { time cat "${layers[@]}" | gzip --decompress --stdout | sha256sum >/dev/null; } 2>"$work/processor"
  sample processor.tools "$(processor_of "$work/processor")"
}

measure_reading() {
  local round
  say "bench: reading"
  make_large_file
  fresh_store
  for ((round = 1; round <= rounds; round++)); do
    # The second mount finds the file whole.
    peel_mount "$registry/large:estargz"
    cat "$work/tree/large.file" >/dev/null
    peel_unmount
    peel_mount "$registry/large:estargz"
    read_large
    peel_unmount
  done
  for ((round = 1; round <= rounds; round++)); do measure_processor; done
  fresh_store
}

# per_gigabyte NAME: processor.NAME becomes seconds for each gigabyte of content.
per_gigabyte() {
  sample "gigabyte.$1" "$(awk -v seconds="$(median "processor.$1")" -v bytes="$(median processor.bytes)" 'BEGIN { print seconds / bytes * 1e9 }')"
}

print_reading() {
  local disk name
  disk=$(findmnt --noheadings --output FSTYPE --target "$work/large.file")
  line "large file of $((large_bytes >> 20)) MiB, sequentially, warm" large.peel.sequential large.disk.sequential "$disk" ms 'ratio 1.02'
  line "the same, $random_reads random pages, warm" large.peel.random large.disk.random "$disk" ms 'ratio 1.02'
  line 'the same, whole, caches dropped' large.peel.dropped large.disk.dropped "$disk" ms 'ratio 1.02'
  for name in peel libraries tools; do per_gigabyte "$name"; done
  line 'processor time for a GB read, from the registry' gigabyte.peel gigabyte.libraries 'inflate and SHA-256, same libraries' s 'ratio 1.3'
  line 'the same' gigabyte.peel gigabyte.tools '`gzip -d`, `sha256sum`' s 'ratio 1.3'
}
