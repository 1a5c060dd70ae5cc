"""The page in the browser: run directories, live or finished, as charts and tables. It reads them and nothing else."""
