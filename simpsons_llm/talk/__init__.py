"""What a finished run is good for: one plain model to give away, its card, GGUF files and prompts for Ollama.

Here lives what other people and other people's tools meet.
Not here: anything that trains. This part imports all lower ones.
"""
