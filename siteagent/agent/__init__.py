"""The agent: the parts list, and what joins the parts. No edge knows another; they meet here.

``parts`` builds, starts and stops everything; ``telling`` carries each event to everybody who wants it; ``desk`` keeps
the providers' runners; ``peering`` knows who may connect; ``asking`` gives an ask what it needs; ``reload`` takes a
changed configuration in.
"""
