"""A reward server: one reward model behind HTTP, for many clients. Needs the extra `serve`."""
