"""medxfer: transfer learning for small medical image collections."""

__version__ = "0.1.0"
