"""Where things come from: third-party files by URL and sha256, their licences, and the code and software that ran.

May import `parallel` and `files`. What is here ends up in the metadata of what is made.
"""
