FROM scratch
COPY nats-server nats.conf cluster.conf /
VOLUME /data
ENTRYPOINT ["/nats-server", "-c", "/nats.conf"]
