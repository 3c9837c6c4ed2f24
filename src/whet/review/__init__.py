"""Labels by people: samples, sessions that survive a kill, the page and the terminal."""
