# Private servers for the other scripts, to be sourced: a registry and a containerd of our own, on loopback and in a temporary
# folder, so that nothing of the machine's own services is used or changed.
#
# Rules: whatever is started here is stopped when the script ends, however it ends; only processes started here are signalled,
# by their id; whatever is still mounted below the temporary folder is unmounted (lazily, so that a dead server cannot hold us).
#
#   begin                 makes $work, the temporary folder, and arms the clean-up; call it first
#   at_exit COMMAND…      runs COMMAND at the end, last one first
#   start_registry        Debian's docker-registry: sets $registry (HOST:PORT); its data stays in $work when it is stopped,
#                         and starting it again serves the same images under the same name
#   stop_registry
#   registry_mark         forgets the requests so far
#   registry_requests     how many requests were answered since the mark
#   registry_bytes        how many bytes their bodies had
#   registry_list         one line each: method, status, bytes, path
#   start_containerd      sets $containerd (the socket); use `containerd_ctr …` and `containerd_ctr_remote …`; `start_containerd FILE`
#                         adds what FILE says to its configuration
#   stop_containerd

# Where servers and Rust are, also for a user or a runner whose PATH does not name it.
PATH=${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { printf '%s\n' "$*" >&2; }
fail() { say "${0##*/}: $*"; exit 1; }
need_root() { [ "$(id -u)" = 0 ] || fail "must run as root (it mounts file systems and makes device nodes)"; }

begin() {
  work=$(mktemp -d "${TMPDIR:-/tmp}/peel-${0##*/}.XXXXXX")
  exit_commands=()
  registry= registry_pid= containerd= containerd_pid=
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  trap 'exit 129' HUP
}

at_exit() { exit_commands+=("$(printf '%q ' "$@")"); }

clean_up() {
  local status=$? index
  trap '' INT TERM HUP
  trap - EXIT
  set +e
  for ((index = ${#exit_commands[@]} - 1; index >= 0; index--)); do eval "${exit_commands[index]}"; done
  stop_registry
  stop_containerd
  unmount_below "$work"
  # Never delete through a mount that could not be removed: the second look is what makes `rm` safe.
  if mounts_below "$work" | grep -q .; then
    say "${0##*/}: left in place, because something is still mounted there: $work"
  else
    rm -rf --one-file-system "$work"
  fi
  exit "$status"
}

# Mount points at or below a folder, deepest first.
mounts_below() { awk -v top="$1" '$5 == top || index($5, top "/") == 1 { print $5 }' /proc/self/mountinfo | sort -r; }

unmount_below() {
  local mount_point
  mounts_below "$1" | while IFS= read -r mount_point; do umount --lazy "$(printf '%b' "$mount_point")"; done
}

# stop_process PID: ends a process that this script started, and waits until it is gone; by force after ten seconds.
# stop_tree PID: the same for it and all that it has started, the youngest first.
#
# A process that has ended may have left its id to somebody else's, so it must still be a child of the one that started it.
stop_process() {
  local pid=$1 parent=${2:-$$} tries
  is_child "$pid" "$parent" || return 0
  kill "$pid" 2>/dev/null || return 0
  for ((tries = 0; tries < 200; tries++)); do
    is_child "$pid" "$parent" || break
    sleep 0.05
  done
  if is_child "$pid" "$parent"; then kill -KILL "$pid" 2>/dev/null || true; fi
  wait "$pid" 2>/dev/null || true
}

stop_tree() {
  local pid=$1 parent=${2:-$$} child
  is_child "$pid" "$parent" || return 0
  for child in $(cat "/proc/$pid/task/$pid/children" 2>/dev/null); do stop_tree "$child" "$pid"; done
  stop_process "$pid" "$parent"
}

# Whether a process runs (a dead one that waits to be waited for does not) and was started by that parent.
is_child() {
  awk -v parent="$2" '
    $1 == "State:" && $2 != "Z" { runs = 1 }
    $1 == "PPid:" && $2 == parent { ours = 1 }
    END { exit !(runs && ours) }' "/proc/$1/status" 2>/dev/null
}

# wait_until DESCRIPTION PID LOG COMMAND…: polls COMMAND; fails at once, with the log's end, when the process has died.
wait_until() {
  local what=$1 pid=$2 log=$3 tries
  shift 3
  for ((tries = 0; tries < 600; tries++)); do
    if "$@" >/dev/null 2>&1; then return 0; fi
    is_child "$pid" $$ || break
    sleep 0.05
  done
  tail -n 20 "$log" >&2
  fail "$what did not start; the end of its log is above"
}

registry_listens() { [ -n "$(registry_port)" ] && curl --silent --fail --noproxy '*' "http://127.0.0.1:$(registry_port)/v2/"; }
registry_port() { sed -n 's/.*listening on 127\.0\.0\.1:\([0-9]*\).*/\1/p' "$work/registry.err" | tail -n 1; }

start_registry() {
  local address=${registry:-127.0.0.1:0}
  mkdir -p "$work/registry"
  cat >"$work/registry.yml" <<YAML
version: 0.1
log: { level: info, formatter: json, accesslog: { disabled: true } }
storage: { filesystem: { rootdirectory: $work/registry }, cache: { blobdescriptor: inmemory } }
http: { addr: "$address" }
YAML
  # Environment variables of these names would override the file.
  env -u REGISTRY_HTTP_ADDR -u REGISTRY_STORAGE -u OTEL_TRACES_EXPORTER \
    docker-registry serve "$work/registry.yml" >>"$work/registry.out" 2>>"$work/registry.err" &
  registry_pid=$!
  wait_until "docker-registry" "$registry_pid" "$work/registry.err" registry_listens
  registry=127.0.0.1:$(registry_port)
  registry_mark
}

stop_registry() {
  if [ -n "$registry_pid" ]; then
    stop_process "$registry_pid"
    registry_pid=
  fi
}

registry_mark() { registry_lines_seen=$(wc -l <"$work/registry.err"); }

registry_list() {
  tail -n "+$((registry_lines_seen + 1))" "$work/registry.err" | jq --raw-output '
    select(.msg | startswith("response completed"))
    | [.["http.request.method"], .["http.response.status"],
       # The log counts the body that a HEAD would have had; none of it was sent.
       (if .["http.request.method"] == "HEAD" then 0 else .["http.response.written"] end),
       .["http.request.uri"]]
    | join(" ")'
}
registry_requests() { registry_list | wc -l; }
registry_bytes() { registry_list | awk '{ sum += $3 } END { printf "%d\n", sum }'; }

containerd_answers() { ctr --address "$containerd" version; }
containerd_ctr() { ctr --address "$containerd" --namespace peel "$@"; }
containerd_ctr_remote() { ctr-remote --address "$containerd" --namespace peel "$@"; }

start_containerd() {
  mkdir -p "$work/containerd"
  containerd=$work/containerd/socket
  cat >"$work/containerd.toml" <<TOML
version = 2
root = "$work/containerd/root"
state = "$work/containerd/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "$containerd"
[ttrpc]
address = "$containerd.ttrpc"
TOML
  [ -z "${1:-}" ] || cat "$1" >>"$work/containerd.toml"
  containerd --config "$work/containerd.toml" >>"$work/containerd.log" 2>&1 &
  containerd_pid=$!
  wait_until containerd "$containerd_pid" "$work/containerd.log" containerd_answers
}

stop_containerd() {
  if [ -n "$containerd_pid" ]; then
    stop_process "$containerd_pid"
    containerd_pid=
  fi
}
