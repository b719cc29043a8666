#!/usr/bin/env bash
# In a network and process namespace of its own (see hostapd.rs): a wired authenticator with a
# dynamic authorization server, and a supplicant that is let in. Then the daemon, until killed.
# Usage: hostapd.sh DIR SECRET DAEMON CONFIG
set -euo pipefail
dir=$1 secret=$2 daemon=$3 config=$4

ip link set lo up
ip link add nas0 type veth peer name cli0
ip link set nas0 up
ip link set cli0 up

printf '"alice" MD5 "apw"\n' >"$dir/users"
cat >"$dir/hostapd.conf" <<CONF
interface=nas0
driver=wired
logger_stdout=-1
logger_stdout_level=0
ieee8021x=1
eap_server=1
eap_user_file=$dir/users
use_pae_group_addr=1
own_ip_addr=127.0.0.1
nas_identifier=wired
ctrl_interface=$dir/h
radius_das_port=3799
radius_das_client=127.0.0.1 $secret
radius_das_require_event_timestamp=1
radius_das_require_message_authenticator=1
CONF
cat >"$dir/wpa.conf" <<CONF
ctrl_interface=$dir/w
ap_scan=0
network={
  key_mgmt=IEEE8021X
  eap=MD5
  identity="alice"
  password="apw"
  eapol_flags=0
}
CONF
hostapd -t "$dir/hostapd.conf" >"$dir/hostapd.log" 2>&1 &
wpa_supplicant -D wired -i cli0 -c "$dir/wpa.conf" >"$dir/wpa.log" 2>&1 &
"$daemon" --config "$config" >"$dir/daemon.out" 2>&1 &

# The session of now, for whoever looks at the file; never half written. A supplicant that was
# thrown out tries again only when told to, once hostapd has forgotten it.
since=$SECONDS
while true; do
    stations=$(hostapd_cli -p "$dir/h" -i nas0 all_sta 2>/dev/null) || stations=''
    sed -n 's/^dot1xAuthSessionId=//p' <<<"$stations" >"$dir/session.new"
    mv "$dir/session.new" "$dir/session"
    if [[ -n $stations ]]; then
        since=$SECONDS
    elif ((SECONDS - since >= 4)); then
        wpa_cli -p "$dir/w" -i cli0 disconnect >/dev/null 2>&1 || true
        wpa_cli -p "$dir/w" -i cli0 reconnect >/dev/null 2>&1 || true
        since=$SECONDS
    fi
    sleep 0.2
done
