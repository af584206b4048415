# What it costs to start a program from an image in each format, to be sourced by scripts/bench.
#
#   measure_formats   mounts the python image in each form, with an empty store, runs `python3 -c 'import ssl'` in it, and counts at the
#                     registry what came over; needs $peel, $discard, $images, $work, $store, peel_mount, peel_unmount, timed, sample
#   print_formats     the table
#
# What is streamed is measured twice: the first time, when all of it comes to mount it; and when it was discarded since, and comes
# again by ranges.

# A tag each, with what it is called, in the order of the table.
formats=(
  'estargz|eStargz, as containerd makes it'
  'peel-estargz|eStargz, as `peel convert` makes it'
  'peel-external|the same with its tables of contents in another image'
  'zstd-chunked|zstd:chunked, the stargz dialect'
  'peel-zstd-chunked|zstd:chunked, the podman dialect'
  'soci-4m|ordinary gzip with a SOCI index, spans of 4 MiB'
  'soci-1m|ordinary gzip with a SOCI index, spans of 1 MiB'
  'gzip|ordinary gzip'
  'tar|uncompressed tar'
  'frames|zstd of many frames'
)
streamed=' gzip tar frames '

publish_formats() {
  local tag convert=("$peel" convert --quiet "oci:$images/python:gzip")
  for tag in estargz zstd-chunked gzip tar; do
    skopeo copy --quiet --preserve-digests --dest-tls-verify=false "oci:$images/python:$tag" "docker://$registry/python:$tag"
  done
  "${convert[@]}" "$registry/python:peel-estargz" --format estargz >/dev/null
  "${convert[@]}" "$registry/python:peel-external" --format estargz --external-toc >/dev/null
  "${convert[@]}" "$registry/python:peel-zstd-chunked" --format zstd-chunked >/dev/null
  for tag in soci-4m:4194304 soci-1m:1048576; do
    "$peel" index push --quiet --tag "${tag%:*}" --span-size "${tag#*:}" "$registry/python:gzip" >/dev/null
  done
  # Without the annotations the layers of zstd:chunked are what their media type says.
  curl --silent --fail --noproxy '*' "http://$registry/v2/python/manifests/peel-zstd-chunked" \
    --header 'Accept: application/vnd.oci.image.manifest.v1+json' \
    | jq --compact-output 'del(.layers[].annotations)' \
    | curl --silent --fail --noproxy '*' --output "$work/frames.answer" --request PUT --data-binary @- \
      --header 'Content-Type: application/vnd.oci.image.manifest.v1+json' "http://$registry/v2/python/manifests/frames"
}

import_ssl() { chroot "$work/tree" python3 -c 'import ssl'; }

# start NAME TAG: the image is mounted and python runs; NAME.mount.*, NAME.run.* say what came over for each, and how long it took.
start() {
  registry_mark
  timed "$1.mount.time" peel_mount "$registry/python:$2"
  sample "$1.mount.requests" "$(registry_requests)"
  sample "$1.mount.bytes" "$(registry_bytes)"
  registry_mark
  timed "$1.run.time" import_ssl
  peel_unmount
  sample "$1.run.requests" "$(registry_requests)"
  sample "$1.run.bytes" "$(registry_bytes)"
}

measure_formats() {
  local round format tag
  say "bench: images in all formats"
  publish_formats
  for ((round = 1; round <= rounds; round++)); do
    say "bench: formats, round $round of $rounds"
    for format in "${formats[@]}"; do
      tag=${format%%|*}
      rm -rf "$store"
      start "format.$tag" "$tag"
      if [[ $streamed == *" $tag "* ]]; then
        "$discard" "$store" >/dev/null
        start "format.$tag.again" "$tag"
      fi
    done
  done
}

print_formats() {
  local format tag what
  printf "Mounting the python image (%s MB as gzip) and \`python3 -c 'import ssl'\` in it: medians of %d rounds; registry on loopback.\\n\\n" \
    "$(image_megabytes gzip)" "$rounds"
  echo '| format | mount: requests | MB | ms | python: requests | MB | ms | MB in all | of the image |'
  echo '|---|--:|--:|--:|--:|--:|--:|--:|--:|'
  for format in "${formats[@]}"; do
    tag=${format%%|*} what=${format#*|}
    if [[ $streamed == *" $tag "* ]]; then
      format_line "$what, the first time" "format.$tag" "$tag"
      format_line "$what, discarded since" "format.$tag.again" "$tag"
    else
      format_line "$what" "format.$tag" "$tag"
    fi
  done
}

# image_bytes NAME TAG: of its config and layers.
image_bytes() {
  curl --silent --fail --noproxy '*' "http://$registry/v2/$1/manifests/$2" \
    --header 'Accept: application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json' \
    | jq '[.config.size, .layers[].size] | add'
}
image_megabytes() { awk -v bytes="$(image_bytes python "$1")" 'BEGIN { printf "%.0f", bytes / 1e6 }'; }

format_line() {
  local what=$1 name=$2 tag=$3 image
  # An index names the image; its layers are those of the ordinary one.
  case $tag in soci-*) image=$(image_bytes python gzip) ;; *) image=$(image_bytes python "$tag") ;; esac
  awk -v what="$what" -v image="$image" \
    -v mount_requests="$(median "$name.mount.requests")" -v mount_bytes="$(median "$name.mount.bytes")" -v mount_time="$(median "$name.mount.time")" \
    -v run_requests="$(median "$name.run.requests")" -v run_bytes="$(median "$name.run.bytes")" -v run_time="$(median "$name.run.time")" 'BEGIN {
      bytes = mount_bytes + run_bytes
      printf "| %s | %d | %.2f | %.0f | %d | %.2f | %.0f | %.2f | %.1f %% |\n", what, mount_requests, mount_bytes / 1e6, mount_time,
        run_requests, run_bytes / 1e6, run_time, bytes / 1e6, 100 * bytes / image }'
}
