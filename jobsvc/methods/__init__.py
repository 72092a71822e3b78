"""The methods of org.jobsvc1.Manager, a file for each family: look up, ask permission, delegate."""
