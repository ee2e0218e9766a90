"""What the browser runner is made of: LiteRT.js from npm, a page, a server on loopback, Chromium."""
