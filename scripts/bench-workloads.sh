# How long it takes until what people run in containers is ready, over the links of bench-startup.sh, to be sourced by scripts/bench.
#
#   measure_workloads   in every round, over each link, for each script in scripts/workloads: from the command that pulls its image to the
#                       end of that script in a container, (1) by containerd with its overlayfs, the ordinary image, (2) by containerd with
#                       `peel serve`, the eStargz, with nothing of the image here. Needs what measure_startup needs
#   print_workloads     the table: of each cell the milliseconds of both, and peel's part

workloads=(python node jdk golang gcc redis nginx postgres)

publish_workloads() {
  local name form
  for name in "${workloads[@]}"; do
    for form in gzip estargz; do
      skopeo copy --quiet --preserve-digests --dest-tls-verify=false "oci:$images/$name:$form" "docker://$registry/$name:$form"
    done
  done
}

# ready WAY IMAGE: its script runs to the end, and its last line is the proof.
ready() {
  local last
  last=$("start_by_$1" "$2" bash -ec "$(cat "scripts/workloads/$2")" | tail -n 1) || fail "$2 by $1 did not get ready"
  [ "$last" = 5050 ] || fail "$2 by $1: \"$last\" where 5050 was to come"
}

measure_workloads() {
  local round wire workload name
  forget_images
  for ((round = 1; round <= rounds; round++)); do
    for wire in "${links[@]}"; do
      say "bench: workloads over ${wire/ / ms, } Mbit/s, round $round of $rounds"
      # shellcheck disable=SC2086 # Two words.
      begin_link $wire
      for workload in "${workloads[@]}"; do
        name=workload.${wire/ /.}.$workload
        drop_caches
        timed "$name.overlayfs" ready overlayfs "$workload"
        forget_images
        fresh_store
        start_serve
        drop_caches
        count_link forgotten
        timed "$name.serve" ready serve "$workload"
        count_link "$name.serve"
        forget_images
        stop_serve
      done
      fresh_store
      end_link
    done
  done
}

print_workloads() {
  local wire workload name
  printf 'From the command that pulls an image to what it is for (`scripts/workloads`): medians of %d rounds. Milliseconds with containerd'\''s overlayfs → with\n' "$rounds"
  printf '`peel serve` (peel'\''s part of the time; its requests and megabytes).\n\n|'
  printf ' | %s' "${links[@]/ / ms, }" | sed 's/\([0-9]\)\( |\|$\)/\1 Mbit\/s\2/g'
  echo ' |'
  echo '|---|--:|--:|--:|--:|'
  for workload in "${workloads[@]}"; do
    printf '| %s' "$workload"
    for wire in "${links[@]}"; do
      name=workload.${wire/ /.}.$workload
      awk -v before="$(median "$name.overlayfs")" -v after="$(median "$name.serve")" -v requests="$(median "$name.serve.requests")" \
        -v bytes="$(median "$name.serve.bytes")" \
        'BEGIN { printf " | %.0f → %.0f (%.2f; %d, %.1f)", before, after, after / before, requests, bytes / 1e6 }'
      awk -v before="$(median "$name.overlayfs")" -v after="$(median "$name.serve")" 'BEGIN { print after / before }' >>"$work/samples/workload.ratio"
    done
    echo ' |'
  done
  printf '\nMedian part of the time over all cells: %.2f; the largest: %.2f.\n' "$(median workload.ratio)" \
    "$(sort --general-numeric-sort "$work/samples/workload.ratio" | tail -n 1)"
}
