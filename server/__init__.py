"""Programs that run the station: control, policy serving, the operator's pages."""
