"""The program from Python: what `import c2fdft_cli` offers, in typed calls of the engine's jobs."""
