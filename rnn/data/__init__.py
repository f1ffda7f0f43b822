"""Text to train on: corpora, their download and their tokenizers."""
