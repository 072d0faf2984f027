"""The server: models behind OpenAI's API for images and videos, and live video in the browser."""
