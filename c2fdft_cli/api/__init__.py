"""The Python interface that `import c2fdft_cli` offers: typed calls of the engine's jobs."""
