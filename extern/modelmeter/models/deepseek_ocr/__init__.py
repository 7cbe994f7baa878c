"""DeepSeek-OCR as an analytic model; the folder `data` holds one file per variant.

>>> MODEL.name
'deepseek-ocr'
"""

from modelmeter.registry import RegisteredModel

MODEL = RegisteredModel(
    name="deepseek-ocr",
    package="modelmeter.models.deepseek_ocr",
    default="gundam",
)
