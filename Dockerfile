# diffuserec for the CPU: the command line, and by default the service with its page.
#
#   docker build -t diffuserec .
#   docker run --rm --user "$(id -u)" -v "$PWD:/data" diffuserec prepare clicks.csv --out clicks
#   docker run --rm -p 8000:8000 -v "$PWD:/data" -e DIFFUSEREC_KEYS="me <key>" diffuserec serve runs/sasrec --host 0.0.0.0
FROM python:3.11-slim AS build
COPY . /src
WORKDIR /src
# a plain torch brings some gigabytes for CUDA: name the wheel of a build for the CPU by --build-arg TORCH=…
ARG TORCH=torch
RUN python -m venv /opt/diffuserec \
    && /opt/diffuserec/bin/pip install --no-cache-dir -c constraints.txt "$TORCH" \
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
