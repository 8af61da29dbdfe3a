"""What bench_server.py compares the server with: small FastAPI applications that uvicorn serves, a process for each core.

    REGISTER=DIR FIND=never|auto uvicorn --factory benchmarks.plain_server:peer

`peer` is what one writes around `DocClassifier` in an afternoon; `constant` answers any body with the same words: what HTTP
costs by itself.
"""
import os

import cv2
import numpy as np
from fastapi import FastAPI, Request, Response, UploadFile

from inference.classify import DocClassifier
from inference.views import FINDS

ANSWER = b'{"results": [{"label": "' + b"x" * 500 + b'"}]}'  # as long as a result


def peer() -> FastAPI:
    find = FINDS[os.environ["FIND"]]
    app, classifier = FastAPI(), DocClassifier(register_root=os.environ["REGISTER"], find=find)

    @app.post("/classify")
    def classify(image: UploadFile):  # no coroutine: FastAPI runs it in its threads
        pixels = cv2.imdecode(np.frombuffer(image.file.read(), np.uint8), cv2.IMREAD_COLOR)
        label, score = classifier(pixels)
        return {"label": label, "score": score}

    return app


def constant() -> FastAPI:
    app = FastAPI()

    @app.post("/classify")
    async def classify(request: Request):
        await request.body()
        return Response(ANSWER, media_type="application/json")

    return app
