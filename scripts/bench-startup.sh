# How long it takes to mount an image that is not here, and to start a program of it, over links, to be sourced by scripts/bench.
#
#   measure_startup   in every round, over each link: (1) `peel mount` of the python image, as eStargz and as zstd:chunked; (2) the same
#                     and a program in it that prints a line, with nothing known of the image, and with what a mount learned that ran
#                     it before; (3) over one of the links, from the command that pulls the image to the end of a program in it that
#                     imports much, by containerd with its overlayfs, by containerd with `peel serve`, pulled by `peel ctr-pull`, and by
#                     `peel mount` alone, the last two also with a learned profile; each with no byte of the image here. Needs $peel,
#                     $relay, $images, $work, $store, peel_mount, peel_unmount, timed, sample, a registry and the containerd of
#                     start_containerd_with_peel
#   print_startup     the tables
#
# The link is a relay of ours, between everybody and the registry: it has a round-trip time and a bandwidth, and counts.

# Milliseconds and megabits per second; the first is this machine's own.
links=('0 100000' '10 1000' '20 200' '50 100')
# What a line that is printed may take over some of them, in milliseconds, from the command that mounts.
declare -A hello_goals=(['0 100000']=75 ['10 1000']=140 ['50 100']=480)
imports_link='20 200'
hello='print(1)'
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
# fresh_store [PROFILES]: nothing is here, but perhaps what mounts have learned, which learn_profiles has put there.
fresh_store() {
  rm -rf "$store"
  if [ -n "${1:-}" ]; then
    "$peel" status --store "$store" >/dev/null
    rm -rf "$store/profiles"
    cp --archive "$1" "$store/profiles"
  fi
}
learn_profiles() {
  rm -rf "$1"
  cp --archive "$store/profiles" "$1"
}
# start_serve OPTIONS…: on the store that is there, or an empty one.
start_serve() {
  "$peel" serve --store "$store" --address "$work/peel.sock" --containerd-address "$containerd" "$@" 2>>"$work/serve.log" &
  serve_pid=$!
  wait_until "peel serve" "$serve_pid" "$work/serve.log" serve_answers
}
# containerd tries to reach it again after a while only, and answers by itself what it knows: not whether a snapshot can be made.
serve_answers() {
  containerd_ctr snapshots --snapshotter peel prepare probe && containerd_ctr snapshots --snapshotter peel rm probe
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
  chroot "$work/tree" python3 -c "$1"
}

# Content that another measurement has left would not cross the link.
forget_images() {
  containerd_ctr images ls --quiet | xargs --no-run-if-empty --delimiter='\n' \
    ctr --address "$containerd" --namespace peel images rm --sync >/dev/null
  [ -z "$(containerd_ctr content ls --quiet)" ] || fail "containerd still holds content: the next pull would not be a pull"
}

# toc_bytes TAG: how many bytes the tables of contents of a form of the python image have in its layers.
toc_bytes() {
  local manifest digest size position footer sum=0
  manifest=$(skopeo inspect --raw "oci:$images/python:$1")
  while read -r digest size position; do
    if [ "$position" = - ]; then
      # CNCF stargz-snapshotter, docs/estargz.md, "Footer": where the table begins, in hexadecimal digits.
      footer=$(tail --bytes 51 "$images/python/blobs/${digest/:/\/}" | tail --bytes +17 | head --bytes 16)
      sum=$((sum + size - 16#$footer))
    else
      # BEGIN:LENGTH:…
      position=${position#*:}
      sum=$((sum + ${position%%:*}))
    fi
  done < <(jq --raw-output '.layers[]
    | "\(.digest) \(.size) \(.annotations["io.github.containers.zstd-chunked.manifest-position"]
      // .annotations["io.containers.zstd-chunked.manifest-position"] // "-")"' <<<"$manifest")
  printf '%d\n' "$sum"
}

# mount_over_link NAME FORM
mount_over_link() {
  fresh_store
  count_link forgotten
  timed "$1.$2.time" peel_mount "$link/python:$2"
  count_link "$1.$2"
  peel_unmount
}

# start_over_link NAME PROGRAM: by `peel mount`, without and with what the first has learned.
start_over_link() {
  local way profiles=
  for way in mount profile; do
    fresh_store "$profiles"
    count_link forgotten
    timed "$1.$way.time" start_by_mount "$2"
    peel_unmount
    # What is under way ends with the mount, and counts.
    count_link "$1.$way"
    if [ "$way" = mount ]; then
      profiles=$work/profiles
      learn_profiles "$profiles"
      sample "$1.touched" "$("$peel" profile export --store "$store" "$link/python:estargz" | scripts/touched-bytes "$images/python" estargz)"
    fi
  done
}

# serve_over_link NAME PROGRAM [PROFILES]
serve_over_link() {
  fresh_store "${3:-}"
  start_serve
  count_link forgotten
  timed "$1.time" start_by_serve python python3 -c "$2"
  count_link "$1"
  containerd_ctr images rm --sync "$link/python:estargz" >/dev/null
  stop_serve
}

measure_startup() {
  local round wire name form
  forget_images
  for ((round = 1; round <= rounds; round++)); do
    say "bench: start-up, round $round of $rounds"
    for wire in "${links[@]}"; do
      # shellcheck disable=SC2086 # Two words.
      begin_link $wire
      name=startup.${wire/ /.}
      for form in estargz zstd-chunked; do mount_over_link "$name" "$form"; done
      if [ -n "${hello_goals[$wire]:-}" ]; then start_over_link "$name.hello" "$hello"; fi
      if [ "$wire" = "$imports_link" ]; then
        count_link forgotten
        timed "$name.imports.overlayfs.time" start_by_overlayfs python python3 -c "$imports"
        count_link "$name.imports.overlayfs"
        forget_images
        start_over_link "$name.imports" "$imports"
        serve_over_link "$name.imports.serve" "$imports"
        serve_over_link "$name.imports.serve-profile" "$imports" "$work/profiles"
      fi
      fresh_store
      end_link
    done
  done
}

print_startup() {
  local wire name form
  printf 'Mounting the python image, of which nothing is here: medians of %d rounds. Three round trips, what the tables of contents take on the link,\n' "$rounds"
  printf 'and 25 ms are the goal; manifest, config and a table for each of three layers are five requests.\n\n'
  echo '| link | form | requests | MB | ms | goal, ms | ratio |'
  echo '|---|---|--:|--:|--:|--:|--:|'
  for wire in "${links[@]}"; do
    name=startup.${wire/ /.}
    for form in estargz zstd-chunked; do
      awk -v link="$(link_words "$wire")" -v form="$form" -v requests="$(median "$name.$form.requests")" -v bytes="$(median "$name.$form.bytes")" \
        -v time="$(median "$name.$form.time")" -v trip="${wire% *}" -v megabits="${wire#* }" -v toc="$(toc_bytes "$form")" 'BEGIN {
          goal = 3 * trip + toc * 8 / megabits / 1000 + 25
          printf "| %s | %s | %d | %.2f | %.0f | %.0f | %.2f |\n", link, form, requests, bytes / 1e6, time, goal, time / goal }'
    done
  done
  printf '\nFrom the command that mounts or pulls it to the end of `python3 -c "…"`: medians of %d rounds. "Of the program" is beside what a mount\n' "$rounds"
  printf 'alone asks for; "fetched" is what came over beside that, for each compressed byte of the chunks that were read. Long imports:\n'
  printf '`%s`.\n\n' "$imports"
  echo '| link | program | way | ms | goal | requests | of the program | goal | MB | fetched | goal |'
  echo '|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|'
  for wire in "${links[@]}"; do
    name=startup.${wire/ /.}
    if [ -n "${hello_goals[$wire]:-}" ]; then
      startup_line "$wire" "\`$hello\`" hello mount '`peel mount`' "${hello_goals[$wire]} ms" '' 2.0
      startup_line "$wire" "\`$hello\`" hello profile 'the same with a profile' '' 3 1.3
    fi
    if [ "$wire" = "$imports_link" ]; then
      startup_line "$wire" 'long imports' imports overlayfs 'containerd, overlayfs' '' '' ''
      startup_line "$wire" 'long imports' imports serve 'containerd, `peel serve`' 'a 9th' '' ''
      startup_line "$wire" 'long imports' imports serve-profile 'the same with a profile' 'a 14th' '' ''
      startup_line "$wire" 'long imports' imports mount '`peel mount`' 'a 9th' '' 2.0
      startup_line "$wire" 'long imports' imports profile 'the same with a profile' 'a 14th' 8 1.3
    fi
  done
}
link_words() { printf '%s ms, %s Mbit/s' "${1% *}" "${1#* }"; }

# startup_line WIRE WORDS PROGRAM WAY WORDS GOAL REQUESTS FETCHED: the last three are goals; what is a part is one of overlayfs's time.
startup_line() {
  local wire=$1 words=$2 of=startup.${1/ /.} name=startup.${1/ /.}.$3 way=$4 what=$5 goal=$6 requests='' fetched='' part=''
  if [ "$way" = mount ] || [ "$way" = profile ]; then
    requests=$(awk -v all="$(median "$name.$way.requests")" -v mount="$(median "$of.estargz.requests")" 'BEGIN { print all - mount }')
    fetched=$(awk -v all="$(median "$name.$way.bytes")" -v mount="$(median "$of.estargz.bytes")" -v touched="$(median "$name.touched")" \
      'BEGIN { printf "%.2f", (all - mount) / touched }')
  fi
  if [[ $goal == a* ]]; then
    part=$(awk -v ours="$(median "$name.$way.time")" -v theirs="$(median "$name.overlayfs.time")" 'BEGIN { printf " (a %.1fth)", theirs / ours }')
  fi
  printf '| %s | %s | %s | %s%s | %s | %d | %s | %s | %.1f | %s | %s |\n' "$(link_words "$wire")" "$words" "$what" \
    "$(number "$(median "$name.$way.time")")" "$part" "$goal" "$(median "$name.$way.requests")" "$requests" "$7" \
    "$(awk -v bytes="$(median "$name.$way.bytes")" 'BEGIN { print bytes / 1e6 }')" "$fetched" "$8"
}
