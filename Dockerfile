# tfpipe on CPUs. Not built by the tests (no Docker there): kept to what pip does.
#   docker build -t tfpipe .
#   docker run --rm -v "$PWD:/data" -w /data tfpipe build --input=photos/ --output=shards/
FROM python:3.11-slim
COPY . /opt/tfpipe
RUN pip install --no-cache-dir /opt/tfpipe
ENTRYPOINT ["tfpipe"]
CMD ["--help"]
