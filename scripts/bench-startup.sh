# How long it takes to start a program of an image that is not here, over a link, to be sourced by scripts/bench.
#
#   measure_startup   in every round, over each link: from the command that pulls the python image to the end of a program in it that
#                     imports much, (1) by containerd with its overlayfs, (2) by containerd with `peel serve`, pulled by
#                     `peel ctr-pull`, (3) by `peel mount` alone; each with nothing of the image here. Needs $peel, $relay, $work,
#                     $store, peel_mount, peel_unmount, timed, sample, a registry and the containerd of start_containerd_with_peel
#   print_startup     the table
#
# The link is a relay of ours, between everybody and the registry: it has a round-trip time and a bandwidth, and counts.

# Milliseconds and megabits per second.
links=('20 200')
imports='import json,ssl,sqlite3,asyncio,http.client,xml.dom.minidom,multiprocessing,pip'

# begin_link MS MBIT: sets $link, what stands for the registry behind it.
begin_link() {
  coproc RELAY { exec "$relay" "$registry" "$1" "$2"; }
  # It names them only as long as it runs.
  link_in=${RELAY[1]} link_out=${RELAY[0]} link_pid=$RELAY_PID
  read -r link <&"$link_out"
  link=127.0.0.1:$link
}
# count_link NAME: samples NAME.requests and NAME.bytes, what crossed the link since it was asked last.
count_link() {
  local requests up down
  echo >&"$link_in"
  read -r requests up down <&"$link_out"
  sample "$1.requests" "$requests"
  sample "$1.bytes" "$down"
  : "$up"
}
end_link() {
  eval "exec $link_in>&-"
  wait "$link_pid" || true
}

# The same containerd for both, with `peel serve` as one of its snapshotters.
start_containerd_with_peel() {
  serve_pid=
  at_exit stop_serve
  "$peel" serve --print-containerd-config --store "$store" --address "$work/peel.sock" >"$work/proxy.toml"
  start_containerd "$work/proxy.toml"
}
# start_serve OPTIONS…: on an empty store.
start_serve() {
  rm -rf "$store"
  "$peel" serve --store "$store" --address "$work/peel.sock" --containerd-address "$containerd" "$@" 2>>"$work/serve.log" &
  serve_pid=$!
  wait_until "peel serve" "$serve_pid" "$work/serve.log" containerd_ctr snapshots --snapshotter peel ls
}
stop_serve() {
  if [ -n "$serve_pid" ]; then
    stop_process "$serve_pid"
    serve_pid=
  fi
}

# start_by_overlayfs IMAGE COMMAND…: pulls the ordinary image and runs COMMAND in a container of it; start_by_serve: the lazy one.
start_by_overlayfs() {
  containerd_ctr images pull --plain-http --snapshotter overlayfs "$link/$1:gzip"
  containerd_ctr run --rm --snapshotter overlayfs "$link/$1:gzip" startup "${@:2}"
}
start_by_serve() {
  "$peel" ctr-pull --quiet --address "$containerd" --namespace peel "$link/$1:estargz"
  containerd_ctr run --rm --snapshotter peel "$link/$1:estargz" startup "${@:2}"
}
start_by_mount() {
  peel_mount "$link/python:estargz"
  chroot "$work/tree" python3 -c "$imports"
}

# Content that another measurement has left would not cross the link.
forget_images() {
  containerd_ctr images ls --quiet | xargs --no-run-if-empty --delimiter='\n' \
    ctr --address "$containerd" --namespace peel images rm --sync >/dev/null
  [ -z "$(containerd_ctr content ls --quiet)" ] || fail "containerd still holds content: the next pull would not be a pull"
}

measure_startup() {
  local round wire name
  forget_images
  for ((round = 1; round <= rounds; round++)); do
    say "bench: start-up, round $round of $rounds"
    for wire in "${links[@]}"; do
      # shellcheck disable=SC2086 # Two words.
      begin_link $wire
      name=startup.${wire/ /.}
      timed "$name.overlayfs.time" start_by_overlayfs python python3 -c "$imports"
      count_link "$name.overlayfs"
      forget_images
      start_serve
      timed "$name.serve.time" start_by_serve python python3 -c "$imports"
      count_link "$name.serve"
      containerd_ctr images rm --sync "$link/python:estargz" >/dev/null
      stop_serve
      rm -rf "$store"
      timed "$name.mount.time" start_by_mount
      count_link "$name.mount"
      peel_unmount
      rm -rf "$store"
      end_link
    done
  done
}

print_startup() {
  local wire name way what
  printf 'From the command that pulls the python image to the end of `python3 -c "%s"`: medians of %d rounds.\n\n' "$imports" "$rounds"
  echo '| link | way | ms | requests | MB |'
  echo '|---|---|--:|--:|--:|'
  for wire in "${links[@]}"; do
    name=startup.${wire/ /.}
    for way in 'overlayfs|containerd, overlayfs' 'serve|containerd, `peel serve`' 'mount|`peel mount`'; do
      what=${way#*|} way=${way%%|*}
      printf '| %s ms, %s Mbit/s | %s | %s | %s | %s |\n' "${wire% *}" "${wire#* }" "$what" \
        "$(number "$(median "$name.$way.time")")" "$(number "$(median "$name.$way.requests")")" \
        "$(awk -v bytes="$(median "$name.$way.bytes")" 'BEGIN { printf "%.1f", bytes / 1e6 }')"
    done
  done
}
