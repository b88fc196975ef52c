# shellcheck shell=bash disable=SC2154 # STATE and PORT_BASE are the caller's
# PostgreSQL, as durable as it comes (fsync and synchronous_commit are on by default).

# Debian keeps the server's programs out of PATH, below the version.
postgres_bin() {
  local newest
  newest=$(printf '%s\n' /usr/lib/postgresql/*/bin/postgres | sort -V | tail -n 1)
  [[ -x $newest ]] || newest=$(command -v postgres) || return 1
  dirname "$newest"
}

postgres_packages() { postgres_bin >/dev/null || echo postgresql; }
postgres_command() { echo postgres; }
postgres_ports() { echo $((PORT_BASE + 432)); }
postgres_url() { echo "postgres://millrace:millrace@127.0.0.1:$((PORT_BASE + 432))/millrace?sslmode=disable"; }
postgres_user() { echo postgres; }  # it refuses to run as root
postgres_signal() { echo INT; }     # TERM would wait for clients to leave

postgres_prepare() {
  local home bin old as=()
  home=$(home_of postgres)
  bin=$(postgres_bin)
  server_tls postgres
  # Whoever is named as in the test client's certificate needs no password, and others need no certificate.
  cat >"$home/tls/hba.conf" <<'EOF'
hostssl all millrace-client 127.0.0.1/32 cert
host    all all             127.0.0.1/32 scram-sha-256
EOF
  chmod 644 "$home/tls/hba.conf"
  if [[ -f $home/data/millrace.done ]]; then
    # After a crash the server refuses to start if its old id exists in any form: as a
    # process of somebody else, or as a zombie that its parent is slow to collect.
    old=$(head -n 1 "$home/data/postmaster.pid" 2>/dev/null) || return 0
    [[ $(readlink "/proc/$old/cwd") == "$home/data" ]] || rm "$home/data/postmaster.pid"
    return 0
  fi
  ((EUID != 0)) || as=(setpriv --reuid=postgres --regid=postgres --init-groups)
  cd "$home" || return
  rm -rf data # left by a call that was cut short
  echo millrace >password
  chmod 644 password
  "${as[@]}" "$bin/initdb" -D data -U millrace --pwfile=password -A scram-sha-256 -E UTF8 --locale=C
  echo 'CREATE DATABASE millrace' | "${as[@]}" "$bin/postgres" --single -D data template1
  touch data/millrace.done
}

postgres_spawn() {
  # No socket file: its path is limited to 107 bytes, and the URL does not need it.
  spawn postgres "$(postgres_bin)/postgres" -D "$(home_of postgres)/data" -p $((PORT_BASE + 432)) \
    -c ssl=on -c ssl_ca_file="$(home_of postgres)/tls/ca.pem" -c ssl_cert_file="$(home_of postgres)/tls/server.pem" \
    -c ssl_key_file="$(home_of postgres)/tls/server.key" -c hba_file="$(home_of postgres)/tls/hba.conf" \
    -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=300 -c max_prepared_transactions=10
}

postgres_ready() {
  "$(postgres_bin)/pg_isready" -q -t 2 -d "$(postgres_url)"
}

# cli postgres ARGS: psql.
postgres_cli() { psql "$(postgres_url)" "$@"; }
