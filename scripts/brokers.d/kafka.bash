# shellcheck shell=bash disable=SC2154 # STATE and PORT_BASE are the caller's
# Apache Kafka in KRaft mode, one node that is broker and controller. The jars come
# from Maven Central: Debian has no package of it.

KAFKA_VERSION=4.2.0
KAFKA_LOG4J_VERSION=2.24.3 # the logging that Kafka leaves to whoever starts it

kafka_packages() {
  command -v java >/dev/null || echo default-jre-headless
  [[ -d $(kafka_libs) ]] || command -v mvn >/dev/null || echo maven
}
kafka_command() { echo java; }
kafka_ports() { echo $((PORT_BASE + 92)) $((PORT_BASE + 93)) $((PORT_BASE + 94)); }
kafka_url() { echo "kafka://127.0.0.1:$((PORT_BASE + 92))?partitions=8"; }
# Users are made by tests. Who comes by the other port may do everything.
kafka_tls_url() { echo "kafka://127.0.0.1:$((PORT_BASE + 94))?partitions=8&tls=true&sasl=scram-sha-512"; }
kafka_libs() { echo "$STATE/dist/kafka-$KAFKA_VERSION"; }

kafka_prepare() {
  local home=$STATE/kafka port=$((PORT_BASE + 92)) controller=$((PORT_BASE + 93)) secure=$((PORT_BASE + 94))
  server_tls kafka
  [[ -d $(kafka_libs) ]] || kafka_download
  cat >"$home/log4j2.properties" <<EOF
rootLogger.level = info
rootLogger.appenderRef.out.ref = out
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = [%d] %p %m (%c)%n
EOF
  cat >"$home/server.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller,SASL_SSL://127.0.0.1:$secure
advertised.listeners=PLAINTEXT://127.0.0.1:$port,SASL_SSL://127.0.0.1:$secure
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL
sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
ssl.keystore.type=PEM
ssl.keystore.location=$home/tls/server-all.pem
ssl.truststore.type=PEM
ssl.truststore.location=$home/tls/ca.pem
listener.name.sasl_ssl.ssl.client.auth=required
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
log.dirs=$home/data
# One node holds the only copy. Few partitions, because each is files to open at start.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
# Tests join groups all the time: do not wait 3 s for more members.
group.initial.rebalance.delay.ms=0
# After a SIGKILL the node comes back only when its old session has ended, usually 9 s.
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=1000
EOF
  # The cluster's id is 16 bytes in base64 and may be the same everywhere.
  kafka_java kafka.tools.StorageTool format --ignore-formatted \
    -t bWlsbHJhY2UtYnJva2Vycw -c "$home/server.properties"
}

kafka_download() {
  local build
  mkdir -p "$STATE/dist"
  build=$(mktemp -d "$STATE/dist/build.XXXXXX")
  cat >"$build/pom.xml" <<EOF
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>millrace</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$KAFKA_VERSION</version></dependency>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>$KAFKA_VERSION</version>
      <!-- It would bring all of Kafka Connect. -->
      <exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion></exclusions></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>$KAFKA_LOG4J_VERSION</version></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-core</artifactId><version>$KAFKA_LOG4J_VERSION</version></dependency>
  </dependencies>
</project>
EOF
  mvn -B -q -Dstyle.color=never -f "$build/pom.xml" \
    dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$build/libs"
  mv "$build/libs" "$(kafka_libs)" # whole or not at all
  rm -r "$build"
}

kafka_java() {
  java "-Dlog4j2.configurationFile=$STATE/kafka/log4j2.properties" -cp "$(kafka_libs)/*" "$@"
}

kafka_spawn() {
  spawn kafka java -Xmx512m "-Dlog4j2.configurationFile=$STATE/kafka/log4j2.properties" \
    -cp "$(kafka_libs)/*" kafka.Kafka "$STATE/kafka/server.properties"
}

# Asks for the cluster's metadata, version 1 without topics, and wants one broker in the
# answer: length, correlation id, number of brokers. Kafka's own tools take seconds of
# processor time for the same question.
kafka_ready() {
  local answer
  # shellcheck disable=SC2016 # $1 is the inner shell's
  answer=$(timeout 2 bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$1"
    printf "\0\0\0\016\0\003\0\001\0\0\0\007\377\377\0\0\0\0" >&3
    head -c 12 <&3 | od -An -tx1' - $((PORT_BASE + 92)) 2>/dev/null) || return 1
  [[ ${answer// /} == ????????0000000700000001 ]]
}

# cli kafka CLASS ARGS: org.apache.kafka.tools.CLASS, as in TopicCommand --list or
# consumer.group.ConsumerGroupCommand --describe --all-groups.
kafka_cli() {
  local class=${1:-TopicCommand}
  (($# == 0)) || shift
  java -cp "$(kafka_libs)/*" "org.apache.kafka.tools.$class" --bootstrap-server "127.0.0.1:$((PORT_BASE + 92))" "$@"
}
