# shellcheck shell=bash disable=SC2034,SC2120
# A throw-away PostgreSQL for tests and measurements: its own directory, a free port on
# 127.0.0.1, gone when the calling script ends. Sourced by scripts/test and scripts/bench.
#
#   postgres_bin                 prints the directory of the server's programs, or fails
#   postgres_start [key=value…]  starts it; sets PG_URL, PG_PORT, PG_USER, PG_BIN, PG_HOME
#   postgres_kill                kills it outright (SIGKILL), as a power cut would
#   postgres_up                  starts it again on its port and data
#   PG_UNDER=(env NAME=value)    a program before the server, and its arguments
#   postgres_stop                stops it and removes its directory; call it from a trap
#
# Anybody on this machine can log in while it runs (trust on loopback): it holds test data only.

PG_AS=() PG_UNDER=() PG_HOME='' PG_PID='' PG_PORT='' PG_USER='' PG_URL='' PG_BIN=''

# Longest wait for the server to come up or to go down, in tenths of a second.
PG_PATIENCE=900

postgres_bin() {
    local found
    # Distributions keep the server's programs outside PATH; the newest version wins.
    for found in $(printf '%s\n' /usr/lib/postgresql/*/bin /usr/pgsql-*/bin | sort -rV) \
        "$(dirname "$(readlink -f "$(command -v initdb || echo /nowhere/initdb)")")"; do
        if [[ -x $found/initdb && -x $found/postgres && -x $found/psql ]]; then
            printf '%s\n' "$found"
            return 0
        fi
    done
    return 1
}

# A port that was free a moment ago; PostgreSQL itself cannot ask the system for one.
postgres_free_port() {
    perl -MIO::Socket::INET -e '
        my $s = IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1", LocalPort => 0)
            or die "no free port: $!\n";
        print $s->sockport, "\n";'
}

postgres_start() {
    PG_BIN=$(postgres_bin) || {
        echo "postgres_start: no PostgreSQL server found; on Debian: apt-get install postgresql" >&2
        return 1
    }
    # The server refuses to run as root.
    PG_AS=()
    if [[ $(id -u) -eq 0 ]]; then
        PG_USER=postgres
        id -u "$PG_USER" >/dev/null 2>&1 || {
            echo "postgres_start: root needs the system user 'postgres' (the Debian package makes it)" >&2
            return 1
        }
        PG_AS=(setpriv "--reuid=$PG_USER" "--regid=$(id -g "$PG_USER")" --init-groups)
    else
        PG_USER=$(id -un)
    fi
    PG_HOME=$(mktemp -d "${TMPDIR:-/tmp}/ned-postgres.XXXXXX")
    mkdir "$PG_HOME/sockets"
    if [[ $(id -u) -eq 0 ]]; then
        chown -R "$PG_USER" "$PG_HOME"
    fi
    if ! (cd "$PG_HOME" && "${PG_AS[@]}" "$PG_BIN/initdb" --pgdata="$PG_HOME/data" --username="$PG_USER" \
        --auth=trust --encoding=UTF8 --locale=C.UTF-8 --no-sync) >"$PG_HOME/initdb.log" 2>&1; then
        cat "$PG_HOME/initdb.log" >&2
        return 1
    fi
    {
        echo "listen_addresses = '127.0.0.1'"
        echo "unix_socket_directories = '$PG_HOME/sockets'"
        echo "fsync = on"
        echo "max_connections = 300" # suites run side by side, each with its own pools
        echo "autovacuum_naptime = '10s'"
        echo "shared_buffers = '256MB'"
        echo "max_wal_size = '2GB'"
        local setting
        for setting in "$@"; do
            echo "${setting%%=*} = '${setting#*=}'"
        done
    } >>"$PG_HOME/data/postgresql.conf"

    local try
    for try in 1 2 3 4 5; do
        PG_PORT=$(postgres_free_port)
        if postgres_up; then
            PG_URL="postgres://$PG_USER@127.0.0.1:$PG_PORT/postgres"
            return 0
        fi
        # Somebody may have taken the port in between: once more with another one.
        grep -q 'Address already in use' "$PG_HOME/server.log" || break
    done
    echo "postgres_start: the server did not come up (try $try):" >&2
    tail -n 20 "$PG_HOME/server.log" >&2
    return 1
}

postgres_up() {
    # setsid: Ctrl-C reaches the tests first, and the server only through our trap.
    # pdeathsig: it goes down even if this script is killed outright.
    (cd "$PG_HOME" && exec setsid setpriv "${PG_AS[@]:1}" --pdeathsig=INT \
        "${PG_UNDER[@]}" "$PG_BIN/postgres" -D "$PG_HOME/data" -p "$PG_PORT") >"$PG_HOME/server.log" 2>&1 &
    PG_PID=$!
    postgres_wait_until_ready
}

# Its children notice within moments that it is gone; the next one waits until they have.
postgres_kill() {
    kill -KILL "$PG_PID" 2>/dev/null || true
    wait "$PG_PID" 2>/dev/null || true
    PG_PID=''
    local n
    for ((n = 0; n < PG_PATIENCE; n++)); do
        pgrep -f -- "-D $PG_HOME/data" >/dev/null || return 0
        sleep 0.1
    done
    return 1
}

postgres_wait_until_ready() {
    local n
    for ((n = 0; n < PG_PATIENCE; n++)); do
        kill -0 "$PG_PID" 2>/dev/null || return 1
        "$PG_BIN/psql" -XAtqc 'select 1' -h 127.0.0.1 -p "$PG_PORT" -U "$PG_USER" postgres \
            >/dev/null 2>&1 && return 0
        sleep 0.1
    done
    return 1
}

postgres_stop() {
    local n
    if [[ -n $PG_PID ]]; then
        kill -INT "$PG_PID" 2>/dev/null || true # "fast": open sessions are cut
        for ((n = 0; n < PG_PATIENCE; n++)); do
            kill -0 "$PG_PID" 2>/dev/null || break
            sleep 0.1
        done
        kill -QUIT "$PG_PID" 2>/dev/null || true
        wait "$PG_PID" 2>/dev/null || true
        PG_PID=''
    fi
    if [[ -n $PG_HOME ]]; then
        rm -rf -- "$PG_HOME"
        PG_HOME=''
    fi
}
