#!/bin/sh
# What an idle agent of 2,000 items costs: `bench/idle-agent.sh target/release/muster [SECONDS]`.
#
# One replica and one agent on this machine, below a temporary directory that stands for the node: 1,520 files in 100
# directories and 480 kernel parameters are declared and brought about; then nothing happens for a while. Told are the agent's share of
# a core and its memory, and how long a change of one file takes until the agent says so. Ends what it started.
set -eu
muster=$(realpath "$1")
seconds=${2:-60}
dir=$(mktemp -d)
cd "$dir"
unset MUSTER_CONTEXT MUSTER_SERVERS MUSTER_AGENT
finish() {
    kill "$agent" "$replica" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$dir"
}
replica= agent=
trap finish EXIT

free() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
clients=$(free) peers=$(free) port=$(free)
cat >replica.toml <<END
[raft]
node_id = "r1"
data_dir = "$dir/r1"
raft_port = $peers
[client]
port = $clients
END
cat >agent.toml <<END
[agent]
node = "idle"
root = "$dir/root"
data_dir = "$dir/agent"
port = $port
[journal]
servers = ["127.0.0.1:$clients"]
END
{
    echo '[vcluster.v.policy]'
    echo '[vcluster.v.files]'
    for i in $(seq 1520); do echo "\"/srv/d$((i % 100))/f$i\" = \"content of file $i\""; done
    echo '[vcluster.v.kernel]'
    for i in $(seq 480); do echo "\"idle.p$i\" = $i"; done
    echo '[[nodes]]'
    echo 'names = "idle"'
    echo 'vcluster = "v"'
} >fleet.toml
mkdir root

"$muster" init --config replica.toml >/dev/null
"$muster" server --config replica.toml >replica.log 2>&1 &
replica=$!
until "$muster" apply --server "127.0.0.1:$clients" --author bench fleet.toml >/dev/null 2>&1; do sleep 0.2; done
"$muster" agent --config agent.toml >agent.log 2>&1 &
agent=$!
drift() { "$muster" drift idle --author bench --agent "127.0.0.1:$port" --json 2>/dev/null; }
until drift | grep -q '"state":"committed"' && [ "$(find root/srv -type f | wc -l)" = 1520 ]; do sleep 0.2; done
sleep 5

ticks() { awk '{ print $14 + $15 }' "/proc/$agent/stat"; }
before=$(ticks)
sleep "$seconds"
after=$(ticks)
hz=$(getconf CLK_TCK)
awk -v t=$((after - before)) -v hz="$hz" -v s="$seconds" 'BEGIN { printf "%.2f %% of a core over %d s\n", 100 * t / hz / s, s }'
awk '/VmRSS/ { printf "%.0f MB\n", $2 / 1024 }' "/proc/$agent/status"

began=$(date +%s%N)
echo changed >root/srv/d7/f7
until drift | grep -q '"state":"drifted"'; do :; done
echo "a changed file is said after $((($(date +%s%N) - began) / 1000000)) ms, the asking included"
