"""The API shared by operator, trainer and client: pydantic models and nothing that does I/O."""
