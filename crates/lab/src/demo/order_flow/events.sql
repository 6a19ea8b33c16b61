select event_id, coalesce(entity_id, '') as order_id, event_type, event_version, status,
       headers ->> 'correlation-id' as correlation_id, headers ->> 'causation-id' as causation_id,
       coalesce(available_at <= $1, true) as due
  from event_outbox
 order by id
