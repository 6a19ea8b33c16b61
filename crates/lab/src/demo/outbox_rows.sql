select id, event_id, entity_type, entity_id as order_id, event_type, event_version, payload::text as payload, status, topic,
       headers ->> 'source' as source, headers ->> 'correlation-id' as correlation_id, headers ->> 'causation-id' as causation_id,
       available_at is not null as scheduled, coalesce(available_at <= $1, true) as due
  from event_outbox
 order by id
