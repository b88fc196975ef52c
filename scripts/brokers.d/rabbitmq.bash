# shellcheck shell=bash disable=SC2154 # STATE and PORT_BASE are the caller's
# RabbitMQ with its default settings, but for addresses and a user of our own.

# Not the commands on Debian's PATH, because these switch to the user rabbitmq, who has
# another cookie.
rabbitmq_bin() {
  local server=/usr/lib/rabbitmq/bin/rabbitmq-server
  [[ -x $server ]] || server=$(type -P rabbitmq-server) || return 1
  dirname "$server"
}

rabbitmq_packages() { rabbitmq_bin >/dev/null || echo rabbitmq-server; }
rabbitmq_command() { echo beam.smp; }
# For AMQP, for AMQP with TLS, for Erlang nodes, for the daemon that tells their ports.
rabbitmq_ports() { echo $((PORT_BASE + 672)) $((PORT_BASE + 671)) $((PORT_BASE + 673)) $((PORT_BASE + 674)); }
rabbitmq_url() { echo "amqp://millrace:millrace@127.0.0.1:$((PORT_BASE + 672))/"; }

rabbitmq_tls_url() { echo "amqps://millrace:millrace@127.0.0.1:$((PORT_BASE + 671))/"; }

# rabbitmq_env: prints the settings, so that nothing of the system's own RabbitMQ is used.
rabbitmq_env() {
  local home=$STATE/rabbitmq
  cat <<EOF
HOME=$home
ERL_EPMD_PORT=$((PORT_BASE + 674))
ERL_EPMD_ADDRESS=127.0.0.1
RABBITMQ_NODENAME=millrace@localhost
RABBITMQ_DIST_PORT=$((PORT_BASE + 673))
RABBITMQ_CONF_ENV_FILE=/dev/null
RABBITMQ_CONFIG_FILE=$home/rabbitmq
RABBITMQ_CONFIG_FILES=$home/conf.d
RABBITMQ_ADVANCED_CONFIG_FILE=$home/advanced
RABBITMQ_ENABLED_PLUGINS_FILE=$home/enabled_plugins
RABBITMQ_MNESIA_BASE=$home/data
RABBITMQ_LOG_BASE=$home/logs
RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}
EOF
}

rabbitmq_prepare() {
  local home=$STATE/rabbitmq
  mkdir -p "$home/conf.d" "$STATE/epmd"
  server_tls rabbitmq
  cat >"$home/rabbitmq.conf" <<EOF
listeners.tcp.local = 127.0.0.1:$((PORT_BASE + 672))
listeners.ssl.local = 127.0.0.1:$((PORT_BASE + 671))
ssl_options.cacertfile = $home/tls/ca.pem
ssl_options.certfile = $home/tls/server.pem
ssl_options.keyfile = $home/tls/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
default_user = millrace
default_pass = millrace
default_user_tags.administrator = true
EOF
  echo '[].' >"$home/enabled_plugins"
}

# RabbitMQ would start epmd by itself, but then nobody knows which one to stop: so epmd is
# started like a broker of its own.
epmd_command() { echo epmd; }

rabbitmq_spawn() {
  local settings
  mapfile -t settings < <(rabbitmq_env)
  (spawn epmd epmd -port $((PORT_BASE + 674)) -address 127.0.0.1)
  # With ALLOW_INPUT the script becomes the server; without, it would stay as its parent.
  spawn rabbitmq env "${settings[@]}" RABBITMQ_ALLOW_INPUT=1 "$(rabbitmq_bin)/rabbitmq-server" -noinput
}

# The server opens its port when it has started, and answers AMQP's greeting by a frame
# of type 1 (method) on channel 0.
rabbitmq_ready() {
  local answer
  # shellcheck disable=SC2016 # $1 is the inner shell's
  answer=$(timeout 2 bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$1"
    printf "AMQP\0\0\011\001" >&3
    head -c 3 <&3 | od -An -tx1' - $((PORT_BASE + 672)) 2>/dev/null) || return 1
  [[ ${answer// /} == 010000 ]]
}

rabbitmq_cleanup() { stop_one epmd; }

# cli rabbitmq ARGS: rabbitmqctl.
rabbitmq_cli() {
  local settings
  mapfile -t settings < <(rabbitmq_env)
  env "${settings[@]}" "$(rabbitmq_bin)/rabbitmqctl" "$@"
}
