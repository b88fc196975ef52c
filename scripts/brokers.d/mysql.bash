# shellcheck shell=bash disable=SC2154 # STATE and PORT_BASE are the caller's
# MariaDB, for the MySQL protocol and dialect.

mysql_packages() {
  # The server may be there without its user and its client: Debian has it in parts.
  if [[ -z $(PATH=$PATH:/usr/sbin type -P mariadbd) || -z $(type -P mariadb) ]] ||
    { ((EUID == 0)) && ! id mysql >/dev/null 2>&1; }; then
    echo mariadb-server
  fi
}
mysql_command() { echo mariadbd; }
mysql_ports() { echo $((PORT_BASE + 306)); }
mysql_url() { echo "mysql://millrace:millrace@127.0.0.1:$((PORT_BASE + 306))/millrace"; }
mysql_user() { echo mysql; } # it refuses to run as root

mysql_prepare() {
  local home as=()
  home=$(home_of mysql)
  server_tls mysql
  # Carried out at every start, before clients are served.
  cat >"$home/init.sql" <<'EOF'
CREATE DATABASE IF NOT EXISTS millrace;
CREATE USER IF NOT EXISTS 'millrace'@'127.0.0.1' IDENTIFIED BY 'millrace';
GRANT ALL PRIVILEGES ON *.* TO 'millrace'@'127.0.0.1' WITH GRANT OPTION;
EOF
  chmod 644 "$home/init.sql"
  [[ ! -f $home/data/millrace.done ]] || return 0
  ((EUID != 0)) || as=(setpriv --reuid=mysql --regid=mysql --init-groups)
  cd "$home" || return
  rm -rf data # left by a call that was cut short
  "${as[@]}" mariadb-install-db --no-defaults --datadir="$home/data" --skip-test-db
  touch data/millrace.done
}

mysql_spawn() {
  # The socket is inside the data folder, by a relative name: a path is limited to 107 bytes.
  PATH=$PATH:/usr/sbin spawn mysql mariadbd --no-defaults --datadir="$(home_of mysql)/data" \
    --port=$((PORT_BASE + 306)) --bind-address=127.0.0.1 --socket=mysql.sock \
    --ssl-ca="$(home_of mysql)/tls/ca.pem" --ssl-cert="$(home_of mysql)/tls/server.pem" --ssl-key="$(home_of mysql)/tls/server.key" \
    --skip-name-resolve --character-set-server=utf8mb4 --max-connections=300 \
    --innodb-flush-log-at-trx-commit=1 --init-file="$(home_of mysql)/init.sql"
}

mysql_ready() { mysql_cli --connect-timeout=2 -e 'SELECT 1' >/dev/null 2>&1; }

# cli mysql ARGS: mariadb.
mysql_cli() {
  mariadb --no-defaults --protocol=tcp -h 127.0.0.1 -P $((PORT_BASE + 306)) -u millrace -pmillrace millrace "$@"
}
