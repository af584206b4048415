# What is fetched of an image that shares most of its files with one that is here, to be sourced by scripts/bench.
#
#   measure_sharing   the python image is read whole; then another, whose one layer has the same files, but each fifth of them changed. Counts at the
#                     registry what came over for the second, beside the size of an image of the changed files alone and of the
#                     table of contents, which nobody has. Needs $peel, $work, $store, peel_mount, peel_unmount, sample, read_all,
#                     line, image_bytes, and a registry with the python image
#   print_sharing     the lines of the table

# publish_sharing: makes $registry/sharing:second and :changed, both by one converter.
publish_sharing() {
  local root=$work/sharing.root image=$work/sharing tag
  fresh_store
  peel_mount "$registry/python:estargz"
  cp --archive "$work/tree" "$root"
  peel_unmount
  # What a table of contents cannot name would make it an ordinary image.
  rm "$root/app/"latin1-*
  # In the order of their names, so that it is the same files each time.
  (cd "$root" && find . -xdev -type f -links 1 -size +0 -print0 | sort --zero-terminated | awk 'BEGIN { RS = ORS = "\0" } NR % 5 == 0') >"$work/sharing.changed"
  (cd "$root" && while IFS= read -r -d '' file; do printf 'changed\n' >>"$file"; done) <"$work/sharing.changed"
  umoci init --layout "$image"
  for tag in second changed; do umoci new --image "$image:$tag"; done
  umoci raw add-layer --image "$image:second" <(tar --create --directory "$root" --one-file-system --sort=name .)
  umoci raw add-layer --image "$image:changed" <(tar --create --directory "$root" --null --files-from "$work/sharing.changed")
  for tag in second changed; do
    "$peel" convert --quiet "oci:$image:$tag" "$registry/sharing:$tag" --format estargz >/dev/null
  done
  rm -rf --one-file-system "$root" "$image"
}

measure_sharing() {
  local round
  say "bench: an image that shares its files"
  publish_sharing
  for ((round = 1; round <= rounds; round++)); do
    fresh_store
    peel_mount "$registry/python:estargz"
    read_all "$work/tree" >/dev/null
    peel_unmount
    registry_mark
    peel_mount "$registry/sharing:second"
    sample sharing.mount "$(megabytes "$(registry_bytes)")"
    read_all "$work/tree" >/dev/null
    peel_unmount
    sample sharing.second "$(megabytes "$(registry_bytes)")"
    sample sharing.changed "$(awk -v mount="$(median sharing.mount)" -v changed="$(megabytes "$(image_bytes sharing changed)")" 'BEGIN { print mount + changed }')"
  done
  fresh_store
}
megabytes() { awk -v bytes="$1" 'BEGIN { print bytes / 1e6 }'; }

print_sharing() {
  line 'fetched of a second image with 80 % of the files of one that is here' sharing.second sharing.changed 'changed files, and what a mount brings' MB 'ratio 1.05'
}
