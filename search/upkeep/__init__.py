"""What keeps plans fresh: two of them compared, the patterns nearest to one, and what lies in a folder of runs."""
