# diffuserec for the CPU: the command line, and by default the service with its page.
#
#   docker build -t diffuserec .
#   docker run --rm -v "$PWD:/data" diffuserec prepare clicks.csv --out clicks
#   docker run --rm -p 8000:8000 -v "$PWD:/data" -e DIFFUSEREC_KEYS="me <key>" diffuserec serve runs/sasrec --host 0.0.0.0
FROM python:3.11-slim AS build
COPY . /src
WORKDIR /src
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/diffuserec \
    && /opt/diffuserec/bin/pip install --no-cache-dir -c constraints.txt torch --index-url "$TORCH_INDEX" \
    && /opt/diffuserec/bin/pip install --no-cache-dir -c constraints.txt '.[serve,mcp,ann]'

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 diffuserec && mkdir /data /jobs && chown diffuserec /data /jobs
COPY --from=build /opt/diffuserec /opt/diffuserec
ENV PATH=/opt/diffuserec/bin:$PATH OMP_NUM_THREADS=1 MPLCONFIGDIR=/tmp/matplotlib
USER diffuserec
WORKDIR /data
EXPOSE 8000
ENTRYPOINT ["diffuserec"]
CMD ["--help"]
