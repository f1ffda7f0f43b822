"""Use of trained networks: model files, text generation and export."""
