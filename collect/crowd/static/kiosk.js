// What pages can do better with scripts than without. Every page works without this file.
