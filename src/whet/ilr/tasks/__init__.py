"""Tasks whose demonstrations are refined: loading them, comparing two completions, scoring one."""
