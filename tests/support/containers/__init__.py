"""Images built and run without a daemon: Debian's buildah, debootstrap and runc, as root."""
