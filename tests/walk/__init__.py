"""Random walks through tabs, charts and people, judged by the EHR's own record."""
