#!/bin/sh
# Boots a node from an initramfs: fetches its overlay and its delta from any replica, checks them, and writes what counts.
#
#   boot.sh NODE DIRECTORY REPLICA...
#
# A REPLICA is where one answers: https://journal-1:9443, or http://journal-1:9442 where boot.anonymous is set. Others that they name are
# asked too. In DIRECTORY there are, after success (exit code 0):
#
#   overlay   what all nodes of the vCluster have in common, as text
#   delta     what makes it right for this node
#   settings  what counts: KEY=VALUE lines, and "KEY absent" for what must not be there
#   sequence  where in the journal that is right; follow the journal after it
#
# It takes curl and a POSIX shell. With sha256sum the checksums are checked; lengths and the documents' last lines always are. Certificates:
#
#   MUSTER_CA, MUSTER_CERT, MUSTER_KEY    PEM files, for https
#   MUSTER_PATIENCE                       seconds until it gives up (600)
#   MUSTER_CURL                           more options for curl

set -u

if [ $# -lt 3 ]; then
    echo "usage: boot.sh NODE DIRECTORY REPLICA..." >&2
    exit 2
fi
node=$1
dir=$2
shift 2
replicas="$*"
patience=${MUSTER_PATIENCE:-600}

mkdir -p "$dir" || exit 1
body=$dir/.body
head=$dir/.head
piece=$dir/.piece
rm -f "$body" "$head" "$piece" "$dir/.tag"
newline='
'

say() { echo "boot.sh: $*" >&2; }

# The value of a header of the last answer.
told() {
    while IFS= read -r line; do
        line=${line%"$(printf '\r')"}
        name=${line%%:*}
        case $name in
            [Hh][Tt][Tt][Pp]/*) value= ;;
            "$1") value=${line#*: } ;;
        esac
    done <"$head"
    printf '%s' "${value:-}"
}

size() {
    if [ -f "$1" ]; then wc -c <"$1" | tr -d ' '; else echo 0; fi
}

# Asks one replica. What came so far is kept, and asked for no more as long as it is of the same boot.
ask() {
    have=$(size "$body")
    set -- "$1"
    if [ "$have" -gt 0 ] && [ -f "$dir/.tag" ]; then
        set -- "$1" -H "Range: bytes=$have-" -H "If-Range: $(cat "$dir/.tag")"
    fi
    case $1 in
        https:*)
            set -- "$@" --cacert "${MUSTER_CA:?names the CA}" --cert "${MUSTER_CERT:?names the certificate}" \
                --key "${MUSTER_KEY:?names its key}"
            ;;
    esac
    url=$1/v1/boot/$node?overlay=plain$insist
    shift
    rm -f "$piece" "$head"
    # A stalled download is given up, and goes on elsewhere from where it is.
    # shellcheck disable=SC2086
    code=$(curl -s -o "$piece" -D "$head" -w '%{http_code}' --http1.1 --connect-timeout 3 --speed-time 5 --speed-limit 1000 \
        ${MUSTER_CURL:-} "$@" "$url")
    broke=$?
    [ -f "$head" ] || return 1
    case $code in
        200)
            # What is left of another boot must not be gone on with.
            rm -f "$body"
            told etag >"$dir/.tag"
            cp "$head" "$dir/.kept"
            [ ! -f "$piece" ] || mv "$piece" "$body"
            ;;
        206)
            say "going on at byte $have"
            cat "$piece" >>"$body"
            ;;
        416)
            # Nothing is left to ask for.
            broke=0
            ;;
        *)
            [ -f "$piece" ] && say "$url: $code: $(cat "$piece")"
            return 1
            ;;
    esac
    return $broke
}

# Splits, checks, unpacks. Fails if anything is not as it was told.
take() {
    cp "$dir/.kept" "$head"
    overlay=$(told muster-overlay-length)
    delta=$(told muster-delta-length)
    if [ "$(size "$body")" != $((overlay + delta)) ]; then
        say "it is cut: $(size "$body") bytes of $((overlay + delta))"
        return 1
    fi
    head -c "$overlay" "$body" >"$dir/overlay"
    tail -c "$delta" "$body" >"$dir/delta"
    if command -v sha256sum >/dev/null; then
        for part in overlay delta; do
            sum=$(sha256sum <"$dir/$part")
            if [ "${sum%% *}" != "$(told muster-$part-sha256)" ]; then
                say "the $part is damaged"
                return 1
            fi
        done
    fi
    settings
}

# What counts: the overlay, but where the delta says something. Documents end with the number of their lines.
settings() {
    # One setting a line, so a key ends at its first space or =.
    said=$newline
    count=0
    ended=
    : >"$dir/.settings"
    while IFS= read -r line; do
        case $line in
            "muster-boot 1 delta "*) ;;
            "end $count") ended=yes ;;
            *)
                count=$((count + 1))
                key=${line%%[ =]*}
                case $line in
                    "policy "*) ;;
                    *" unset") said=$said$key$newline ;;
                    *)
                        said=$said$key$newline
                        printf '%s\n' "$line" >>"$dir/.settings"
                        ;;
                esac
                ;;
        esac
    done <"$dir/delta"
    [ -n "$ended" ] || { say "the delta has no end"; return 1; }
    count=0
    ended=
    while IFS= read -r line; do
        case $line in
            "muster-boot 1 overlay "*) ;;
            "end $count") ended=yes ;;
            *)
                count=$((count + 1))
                key=${line%%[ =]*}
                case $line in
                    "policy "*) ;;
                    *)
                        case $said in
                            *"$newline$key$newline"*) ;;
                            *) printf '%s\n' "$line" >>"$dir/.settings" ;;
                        esac
                        ;;
                esac
                ;;
        esac
    done <"$dir/overlay"
    [ -n "$ended" ] || { say "the overlay has no end"; return 1; }
    told muster-sequence >"$dir/sequence"
    mv "$dir/.settings" "$dir/settings"
}

insist=
waited=0
while :; do
    pause=
    learnt=
    for replica in $replicas; do
        if ask "$replica" && take; then
            say "$node boots at sequence $(cat "$dir/sequence"), from $replica"
            rm -f "$body" "$head" "$dir/.tag" "$dir/.kept"
            exit 0
        fi
        # Whole but wrong: begin anew.
        if [ -f "$dir/.kept" ] && [ "$(size "$body")" != 0 ]; then
            cp "$dir/.kept" "$head"
            if [ "$(size "$body")" -ge $(($(told muster-overlay-length) + $(told muster-delta-length))) ]; then
                rm -f "$body" "$dir/.tag" "$dir/.kept"
            fi
        fi
        if [ -f "$head" ]; then
            after=$(told retry-after)
            # The shortest wait that anybody told.
            if [ -n "$after" ] && [ "$after" -lt "${pause:-$patience}" ]; then pause=$after; fi
            for other in $(told muster-elsewhere | tr -d ','); do
                case " $replicas " in
                    *"//$other "*) ;;
                    *)
                        replicas="$replicas ${replica%%:*}://$other"
                        learnt=yes
                        ;;
                esac
            done
        fi
    done
    [ -n "$learnt" ] && continue
    # If nobody else serves, the leader is better than nobody.
    insist='&insist=yes'
    pause=${pause:-1}
    if [ "$waited" -ge "$patience" ]; then
        say "no replica booted $node within $patience s: $replicas"
        exit 1
    fi
    sleep "$pause"
    waited=$((waited + pause))
done
