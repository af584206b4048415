# How fast images are converted, beside the reference converter, to be sourced by scripts/bench.
#
#   measure_convert   converts the ordinary python image, from where each converter has it (a layout; containerd's store) to there again;
#                     needs $peel, $images, $work, a running containerd, sample
#   print_convert     the table
#
# Time is told twice: from start to end, and as processors were kept busy (user and system; the reference's with containerd's share).

measure_convert() {
  local round
  say "bench: converting"
  skopeo copy --quiet "oci:$images/python:gzip" "oci-archive:$work/convert.tar:peel.local/python:gzip"
  containerd_ctr images import --no-unpack "$work/convert.tar" >/dev/null
  rm "$work/convert.tar"
  for ((round = 1; round <= rounds; round++)); do
    say "bench: converting, round $round of $rounds"
    convert_by_peel convert.peel.estargz --format estargz
    convert_by_peel convert.peel.estargz9 --format estargz --level 9
    convert_by_reference convert.reference.estargz --estargz
    convert_by_peel convert.peel.zstd --format zstd-chunked
    convert_by_reference convert.reference.zstd --zstdchunked
  done
}

convert_by_peel() {
  local name=$1 out=$work/converted
  shift
  both_times "$name" "$peel" convert --quiet "oci:$images/python:gzip" "oci:$out:bench" "$@"
  sample "$name.bytes" "$(skopeo inspect --raw "oci:$out:bench" | jq '[.layers[].size] | add')"
  rm -rf "$out"
}

convert_by_reference() {
  local name=$1 image=peel.local/python digest
  shift
  both_times "$name" containerd_ctr_remote images convert --oci "$@" "$image:gzip" "$image:bench"
  digest=$(containerd_ctr images ls "name==$image:bench" | awk 'END { print $3 }')
  sample "$name.bytes" "$(containerd_ctr content get "$digest" | jq '[.layers[].size] | add')"
  # Its blobs go with it: the next round must make them again.
  containerd_ctr images rm --sync "$image:bench" >/dev/null
}

# both_times NAME COMMAND…: milliseconds as NAME.time and NAME.cpu. What containerd did meanwhile, it did for COMMAND.
both_times() {
  local name=$1 TIMEFORMAT='%R %U %S' before after
  shift
  before=$(containerd_ticks)
  { time "$@" >/dev/null 2>"$work/both_times.err"; } 2>"$work/both_times" || { cat "$work/both_times.err" >&2; fail "$1 failed"; }
  after=$(containerd_ticks)
  sample "$name.time" "$(awk '{ print 1000 * $1 }' "$work/both_times")"
  sample "$name.cpu" "$(awk -v ticks="$((after - before))" -v hertz="$(getconf CLK_TCK)" \
    '{ print 1000 * ($2 + $3 + ticks / hertz) }' "$work/both_times")"
}
# Of all its threads; its name has no blank.
containerd_ticks() { awk '{ print $14 + $15 }' "/proc/$containerd_pid/stat"; }

print_convert() {
  printf 'Converting the python image (250 MB uncompressed) from gzip on %d processors: medians of %d rounds.\n\n' "$(nproc)" "$rounds"
  echo '| what | peel | reference | times faster | peel, processor | reference, processor | times less | size, of the reference'"'"'s |'
  echo '|---|--:|--:|--:|--:|--:|--:|--:|'
  convert_line 'eStargz, at the default levels (7 and 9)' convert.peel.estargz convert.reference.estargz
  convert_line 'eStargz, both at level 9' convert.peel.estargz9 convert.reference.estargz
  convert_line 'zstd:chunked, at the default levels (9 and 3)' convert.peel.zstd convert.reference.zstd
}

convert_line() {
  awk -v what="$1" -v ours="$(median "$2.time")" -v theirs="$(median "$3.time")" \
    -v our_cpu="$(median "$2.cpu")" -v their_cpu="$(median "$3.cpu")" \
    -v our_bytes="$(median "$2.bytes")" -v their_bytes="$(median "$3.bytes")" 'BEGIN {
      printf "| %s | %.1f s | %.1f s | %.1f | %.1f s | %.1f s | %.1f | %.1f %% |\n", what, ours / 1000, theirs / 1000, theirs / ours,
        our_cpu / 1000, their_cpu / 1000, their_cpu / our_cpu, 100 * our_bytes / their_bytes }'
}
