FROM scratch
COPY nats-server nats.conf /
VOLUME /data
ENTRYPOINT ["/nats-server", "-c", "/nats.conf"]
