"""ALOHA: ViperX and WidowX arms as configurations of one driver, its start ritual and set-up."""
