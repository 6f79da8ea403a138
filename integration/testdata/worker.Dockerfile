FROM scratch
COPY identify-worker /
USER 65532:65532
ENTRYPOINT ["/identify-worker"]
