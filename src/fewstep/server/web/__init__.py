"""Live video in the browser: the page (index.html, live.css, live.js) and what feeds it."""
