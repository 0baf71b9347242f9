"""A clinic as an API with Django REST framework."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import Group
from django.urls import include, path
from rest_framework import permissions, serializers, viewsets
from rest_framework.pagination import PageNumberPagination
from rest_framework.response import Response
from rest_framework.routers import DefaultRouter
from rest_framework.views import APIView

from django_smart.mixins import SMARTRequiredMixin
from tests.sites.urls import pages
from tests.urls import urlpatterns as package


class _Serializer(serializers.HyperlinkedModelSerializer):
    class Meta:
        model = Group
        fields = ("url", "name")


class _Pages(PageNumberPagination):
    page_size = 2


class Notes(SMARTRequiredMixin, viewsets.ModelViewSet):
    """Notes on the patient of the launch."""

    serializer_class = _Serializer
    permission_classes = (permissions.IsAuthenticated,)
    pagination_class = _Pages

    def get_queryset(self) -> Any:
        """Those of this patient."""
        patient = self.request.smart.patient_id  # type: ignore[attr-defined]
        return Group.objects.filter(name__startswith=f"{patient}: ").order_by("pk")

    def perform_create(self, serializer: Any) -> None:
        """Write one for this patient."""
        patient = self.request.smart.patient_id  # type: ignore[attr-defined]
        serializer.save(name=f"{patient}: {serializer.validated_data['name']}")


class Results(SMARTRequiredMixin, APIView):
    """What the EHR has measured."""

    smart_scopes = "patient/Observation.rs"
    permission_classes = (permissions.IsAuthenticated,)

    def get(self, request: Any) -> Response:
        """The subjects of some."""
        smart = request.smart
        found = smart.fhir.search("Observation", patient=smart.patient_id, limit=3)
        return Response({"subjects": [each["subject"]["reference"] for each in found]})


router = DefaultRouter()
router.register("notes", Notes, basename="group")
urlpatterns = [
    *package,
    *pages,
    path("api/", include(router.urls)),
    path("api/results/", Results.as_view()),
    path("api-auth/", include("rest_framework.urls")),
]
