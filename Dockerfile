# monai_lcs on a CPU, with atlases and weights. In a clone of the repository:
#   docker build -t monai-lcs .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" monai-lcs segment scan.nii.gz -o results
FROM python:3.11.13-slim-bookworm

ENV HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# Without CUDA, and first: the package changes more often than PyTorch
RUN pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu

COPY containers/constraints.txt setup.cfg setup.py pyproject.toml README.md LICENSE /opt/monai-lcs/
COPY monai_lcs /opt/monai-lcs/monai_lcs
COPY bundles /opt/monai-lcs/bundles
RUN pip install --constraint /opt/monai-lcs/constraints.txt '/opt/monai-lcs[atlases,bundle]' && monai-lcs --version

WORKDIR /data
ENTRYPOINT ["monai-lcs"]
CMD ["--help"]
