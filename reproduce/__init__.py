"""The paper's tables and figures and the project's experiments: `make reproduce NAME=…`."""
