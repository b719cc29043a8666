#!/usr/bin/env bash
# The classic count of both event stacks, under its classic name (NED_BIN: the binary to use).
set -euo pipefail
exec -a event_count.sh "${NED_BIN:-nas_event_daemon}" "$@"
